-- Whose conversation it is; '' where the server does not tell its clients apart.
ALTER TABLE chatts ADD COLUMN owner text NOT NULL DEFAULT '';
