"""`python -m beam_pipelines.cli …`: the same as the command `beam-pipelines`."""

from beam_pipelines.cli.main import main

if __name__ == "__main__":
    main()
