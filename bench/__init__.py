"""The benchmark of fastsoftmax: `python -m bench` races it, `python -m bench.accuracy` counts its errors.

cases.py        what is computed: operations, shapes, dtypes, and the arrays of one case
contenders.py   who computes it: fastsoftmax, its reference, SciPy
peers.py        other libraries, raced where they are installed
limits.py, .c   what no contender can beat: moving the bytes, and exponentiating what they hold
workers.py      a process for each contender, where it computes and is timed
race.py         the measurement: agreement first, then interleaved rounds
measure.py      all cases with one number of threads
busy.py         `--busy`: one thread and several beside other work, and what comes of it: busy_report.py
scale.py        `--scale`: logits on disk, through dask
report.py       tables, Markdown and JSON of what came out
marks.py        what fastsoftmax holds itself to, and where it does not get there
chart.py        and its picture; of the errors: accuracy_chart.py
machine.py      where it was measured
"""
