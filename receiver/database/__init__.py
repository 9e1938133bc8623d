"""The engine, the tables, the migrations, retention."""
