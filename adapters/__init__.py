"""One package per framework. Each speaks one framework's language and nothing else of it leaves the package.

A package here has a function `adapter(options: AdapterOptions) -> Adapter` (see `harness/core/adapter.py`)
and is named by the key `adapter` of a `conf/framework/*.yaml`. It may import the core and its own framework,
nothing above. What it has to fulfil is written down as tests in `tests/adapters/test_adapter_contract.py`,
which run for every framework that has a file in `conf/framework`.
"""
