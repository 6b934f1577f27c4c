"""Properties of the processor and system: threads, instruction sets, huge pages."""
