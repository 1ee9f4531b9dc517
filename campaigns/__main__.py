"""`python -m campaigns`, the same as `campaigns`."""

from campaigns.cli import main

if __name__ == "__main__":
    main()
