"""A conversation: what the user says comes in, speech for the avatar comes out (Talker, Conversation)."""
