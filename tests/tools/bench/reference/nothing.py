"""The reference: a Flask view that reads the body and does nothing."""

from flask import Flask, request

app = Flask(__name__)


@app.route("/", methods=["GET", "POST"])
def nothing():
    """Answer 200."""
    request.get_data()
    return ""
