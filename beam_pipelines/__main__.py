"""`python -m beam_pipelines --spec … --runner … --key=value`: the door for what calls pipelines by flags."""

from beam_pipelines.cli.door import main

if __name__ == "__main__":
    main()
