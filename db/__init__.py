"""What is true of the database: URLs, schema, migrations, models, and a PostgreSQL that needs no set-up."""
