"""Lets schemathesis get past the model's name: a name that fits the schema is hardly ever one that is served."""

import os

import schemathesis

MODEL = os.environ["PELTON_MODEL"]


@schemathesis.hook
def map_body(context, body):
    # Every other name stays as it was drawn, so that unknown models are asked for too.
    if isinstance(body, dict) and isinstance(body.get("model"), str) and len(body["model"]) % 2 == 0:
        body["model"] = MODEL
    return body
