"""Sinkscope and every published rule on real models: ``python -m benchmarks.real_models``.

Each model is profiled on the calibration data that sinkscope ships. Then texts (and pictures) that calibration does not
contain go through it with transformers' eager attention, and all methods are judged on the very same tokens against
attention sinks: tokens whose attention, averaged over heads and over at least 40 later queries, is above 0.10 (in a
second view, above 0.05). Counts are pooled over pieces of 255 tokens within a layer; F1 and average precision are
averaged over the layers of the profile's bands that have attention sinks. The published rules see the held-out tokens
themselves, where sinkscope has only its calibration data.

Results go to ``benchmarks/results/real_models.json``:

``settings``    thresholds, later_queries, piece_tokens, bootstraps, texts (names), and tokens (most a variant, or null)
``versions``, ``seconds``
``rules``       {name: {source, definition}} of the published rules
``skipped``     [{name, reason}]
``bars``        [{model, what, value, bound, met, variant, default}]: met is null where there is nothing to judge
``models``      one entry a model:

    ``name``, ``backbone``, ``verdict``, ``reason``, ``dims``, ``expected`` (sets of which one must be found, or null),
    ``bands`` [{first_layer, last_layer, dims, quality}], ``rejected`` {companion | outlier | content: dims}, ``notes``,
    ``seconds`` {profile, capture, judge}, ``default_variant`` (as the tokenizer begins a text),
    ``rules``         {name: {dims (at most 64), found (how many)}}
    ``variants``      {"without BOS" | "with BOS" | "pictures": {pieces, tokens, judged, first_token_layers (where the
                      first token draws more than 0.10 on average), uncovered_layers, coverage, thresholds}}
    ``thresholds``    {"0.1" | "0.05": {layers, sinks (one number a layer), layers_with_sinks, oracle_over_profile (the
                      best threshold in hindsight over the profile's), methods}}
    ``methods``       {name: {precision, recall, f1, average_precision (means over layers with sinks), f1_interval,
                      average_precision_interval (95 %, bootstrap over pieces), layers {flagged, both, precision,
                      recall, f1, average_precision}, precision_at_recall (mean over layers, on 41 recalls from 0 to
                      1)}}; names are those of `benchmarks.real_models.judging` and of the
                      rules; without bands the layers are all of them, and methods that need dims are left out
    ``disagreements`` see `benchmarks.real_models.disagreements.collect`
    ``causal``        the profile's `evidence.causal`, or null
"""
