"""docs/reference/ and docs/words.md, made of the types: `make reference`."""
