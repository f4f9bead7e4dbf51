"""The synthetic talking-head world: endless clips of rendered speakers with exact truth."""
