"""What a build measures: quality against fp32, golden outputs."""
