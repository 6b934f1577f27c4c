"""A model folder, opened: its files checked, its graph in a session, its key-value cache."""
