"""What programs and tasks share by a name: locks, queues, variables, events."""
