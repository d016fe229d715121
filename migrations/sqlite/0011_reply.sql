-- What a reply has besides the text that the model is shown again. The line `-- next` stands between the
-- statements of a file, since Spin runs one statement per call.
--
-- As it was generated, where `message` differs.
ALTER TABLE chatts ADD COLUMN raw text;
-- next
ALTER TABLE chatts ADD COLUMN thinking text;
-- next
-- JSON objects with commas in between.
ALTER TABLE chatts ADD COLUMN calls text;
