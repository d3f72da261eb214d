"""Crops, waveforms and transcripts -> feature sequences; a family is a file."""
