"""Every key is described, in the reference page and in the schema that editors read."""

from neuroenc.study.config import StudyConfig, config_schema, reference_markdown


def test_every_key_is_described():
    schema = config_schema()
    for table in (schema, *schema["$defs"].values()):
        assert table["description"]
        for name, key in table["properties"].items():
            assert key.get("description"), (table["title"], name)


def test_the_reference_has_every_table_and_key():
    page = reference_markdown()
    for title in ("[data]", "[features.NAME]", "[captions.decoder]", "[[incontext.task.train]]", "[compare.layers]"):
        assert f"## `{title}`" in page
    assert "| `share` | number above 0 and below 1 | `0.2` |" in page
    assert "| `model` | text | *required* |" in page
    assert "``" not in page
    for name in ("temperature", "n_candidates", "permutation_null", "response_scale"):
        assert f"| `{name}` |" in page
    assert set(StudyConfig.model_fields) == set(config_schema()["properties"])
