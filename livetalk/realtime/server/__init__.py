"""The page one can talk to: HTTP for the page and the offer, one WebRTC connection a session for everything else."""
