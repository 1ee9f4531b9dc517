"""Whatever comes from outside: lists, replies, templates and fields, configuration."""
