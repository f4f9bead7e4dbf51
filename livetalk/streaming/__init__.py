"""Live: sound is pushed in, timed blocks of frames come out (Performer, Session, Live, Player)."""
