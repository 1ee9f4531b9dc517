"""Campaigns on this machine: the supervisor, its child processes, the embedded broker."""
