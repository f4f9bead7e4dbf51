"""People's own footage: read, cut into clips of one speaker, judged, and listed with the reasons."""
