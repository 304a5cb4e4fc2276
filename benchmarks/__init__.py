"""Speed, memory and first-call time of mcelbo beside its peers; see `python -m benchmarks --help`."""
