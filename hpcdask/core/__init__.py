"""Scheduler and worker as pure state machines: events in, messages and instructions out, no I/O."""
