"""`python -m tocsin_agent` is `tocsin-agent`."""

from tocsin_agent.cli import main

if __name__ == "__main__":
    main()
