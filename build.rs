//! Compresses the migrations, which are read once in a database's life: as text they would be an eighth of the
//! component (measured).

use std::path::Path;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=migrations");
    let out = env::var_os("OUT_DIR").unwrap_or_default();
    for database in ["postgres", "sqlite"] {
        let entries = fs::read_dir(Path::new("migrations").join(database))?;
        let mut files = entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<Vec<_>>>()?;
        files.sort();
        let texts = files.iter().map(fs::read_to_string);
        // As within a file, between the statements that share one.
        let text = texts.collect::<io::Result<Vec<_>>>()?.join("-- next\n");
        let compressed = miniz_oxide::deflate::compress_to_vec(text.as_bytes(), 10);
        fs::write(Path::new(&out).join(database), compressed)?;
    }
    Ok(())
}
