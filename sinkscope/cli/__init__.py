"""The command line: one file per command, thin over the library.

    main.py     the group, exit codes, errors as one line
    output.py   people on a terminal, or one JSON document; progress on stderr
    events.py   progress, errors and the end as JSON lines, for schedulers
    places.py   output files: names, and whether they can be written, before any work is done

Commands import the library inside their functions, so that ``sinkscope --help`` answers at once.
"""
