"""One module a check, each with ``run(place) -> Findings``. The code under test is the product's own."""
