"""Judges that read tracks from pixels, measures over arrays, and reports. Nothing here knows a generator."""
