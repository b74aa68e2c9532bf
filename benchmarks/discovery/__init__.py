"""Discovery on stores whose sinks are known, beside every published rule.

    python -m benchmarks.discovery [--stores N] [--only STRATUM] [--workers 1] [--no-calibration] [--no-speed]

Results go to benchmarks/results/discovery.json:

``settings``        of discovery; ``versions``; ``seconds`` in all
``bars``            the figures that the method is held to, each with its bound and whether it is met
``accuracy``        exact-set accuracy {"separable" | "all": {stratum: {method: {hits, of, rate, interval}}}}; stratum
                    "" holds all stores, "sinks" and "free" those with and without sinks. Methods are "sinkscope" and
                    the names of `benchmarks.rules.RULES`; a rule that needs attention is judged where there is some
``factors``         the same for the values of single factors, separable stores, {factor: {value: {method: ...}}}
``false_discovery`` sink-free stores with any dimension, {method: {hits, of, rate, interval}}; "by_stratum" for
                    sinkscope; "dimensions": false ones among all that were named in any store
``tokens``          on separable stores with sinks: {method: {sinks, tokens, missed, false, outside, outside_false,
                    error, f1}}; inside = layers with sink tokens, outside = the other judged layers
``stability``       share of separable stores with sinks all of whose dimensions are found by 95 % of the bootstraps
``extent``          layers in which bands and truth disagree, over the layers in which sink dimensions act
``calibration``     null p-values on sink-free stores without decoys, see `null_calibration.py`
``speed``           the large run file, see `speed.py`
``failures``        separable stores that sinkscope gets wrong, with all factors: build(Case(**factors)) rebuilds one
``unseparable``     the same for stores that are not separable
``stores``          one row a store: [seed, stratum, separable, true dims, found dims ([-1] after a crash), verdict,
                    least stability, token counts in the order of ``tokens``, [extent wrong, of], seconds,
                    {rule: exact}]
"""
