"""One package per framework; each knows a single framework, and no other code imports that framework.

A package here has a function `adapter(options: AdapterOptions) -> Adapter` (see `harness/core/adapter.py`).
The key `adapter` of a `conf/framework/*.yaml` names the package. It may import the core and its own framework
and nothing else. `tests/adapters/test_adapter_contract.py` defines what a package must do; its tests run for
every framework that has a file in `conf/framework`.
"""
