"""The demo, and the scripted SMTP server that the tests use too."""
