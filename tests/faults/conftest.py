from tests.cli.conftest import dinox, forget_datasets, output_dir  # noqa: F401
