"""Does VAR help on the demo model? Its own questions about harder pictures, with VAR off and on.

    pictures    the demo's scenes, made harder: noise, small objects, covers over them, scraps around them
    scoring     one teacher-forced pass: whether the greedy answer is right, and the loss of the true answer
    statistics  paired comparisons: intervals, tests, Holm's correction
    settings    the grid of p and rho, the ablations, and what each of them gives
    document    docs/helps.md and the printed tables, from the results alone

`python -m benchmarks.helps` chooses the difficulty on one seed, measures the grid and the ablations on a second,
measures the best cell of the grid again on a third, and looks at the negative control beside it. It takes about 40
minutes of one CPU core that computes bfloat16 directly, else twice that.
"""
