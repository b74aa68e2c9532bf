"""Write the JSON Schema of a profile: ``python -m sinkscope.registry.export_schema [PATH]``.

Without PATH it goes to `schema.json` beside the profiles. Run it after every change of `sinkscope.profile.schema`; a
test and `sinkscope registry check` compare the file with the schema in force.
"""

import json
import sys
from pathlib import Path

from sinkscope.profile import json_schema


def schema_text() -> str:
    """The schema as an indented JSON document that ends with a newline."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Write the schema and print its path."""
    from sinkscope.registry.local import SCHEMA_FILE, packaged_folder

    arguments = sys.argv[1:] if arguments is None else arguments
    path = Path(arguments[0]) if arguments else packaged_folder() / SCHEMA_FILE
    path.write_text(schema_text(), encoding="utf-8")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
