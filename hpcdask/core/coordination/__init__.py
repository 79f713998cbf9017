"""What clients share by name, as the scheduler keeps it: locks, queues, variables, events.

Each kind is a class of its own that knows no clock and no network: events in, answers out.
"""
