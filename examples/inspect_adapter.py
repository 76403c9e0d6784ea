"""Checks adapters before they are loaded, and loads those that fit: `python examples/inspect_adapter.py`.

`blora adapters inspect FOLDER --model MODEL` tells the same without an engine.
"""

from blora.engine import LLM

MODEL = ".cache/models/SmolLM2-135M-Instruct"
FOLDERS = {"shop-sql": "bench/demo/adapters/shop-sql", "broken": "bench/demo"}


def main() -> None:
    llm = LLM(MODEL)
    for name, folder in FOLDERS.items():
        report = llm.inspect_adapter(folder)
        if report.problems:
            print(f"{folder} would be refused:", *report.problems, sep="\n  ")
            continue
        largest = max(report.layers, key=lambda layer: layer.norm)
        print(f"{folder}: {report.kind}, {len(report.applied_tensors)} tensors, {report.num_pages} pages")
        print(f"  it changes {largest.name} most, by a norm of {largest.norm:.2f}")
        llm.load_adapter(name, folder)
    print("loaded:", *(adapter.name for adapter in llm.list_adapters()))


if __name__ == "__main__":
    main()
