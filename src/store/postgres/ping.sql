-- Whether this server takes no writes at present, as a standby does.
SELECT current_setting('transaction_read_only') = 'on'
