"""The JSON API, one file per noun; `web/routes.py` lists them."""
