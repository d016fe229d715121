//! Makes of the SQL files what the component has of them.
//!
//! The migrations are read once in a database's life, and compressed: as text they would be an eighth of the component
//! (measured). The statements are sent each time, and have of their comments the first line, by which a database's log
//! names them.

use std::path::Path;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=migrations");
    println!("cargo::rerun-if-changed=src/store");
    let out = env::var_os("OUT_DIR").unwrap_or_default();
    let out = Path::new(&out);
    for database in ["postgres", "sqlite"] {
        let statements = out.join("statements").join(database);
        fs::create_dir_all(&statements)?;
        for entry in fs::read_dir(Path::new("src/store").join(database))? {
            let file = entry?.path();
            if let (Some("sql"), Some(name)) = (extension(&file), file.file_name()) {
                fs::write(
                    statements.join(name),
                    uncommented(&fs::read_to_string(&file)?),
                )?;
            }
        }
        let entries = fs::read_dir(Path::new("migrations").join(database))?;
        let mut files = entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<Vec<_>>>()?;
        files.sort();
        let texts = files.iter().map(fs::read_to_string);
        // As within a file, between the statements that share one.
        let text = texts.collect::<io::Result<Vec<_>>>()?.join("-- next\n");
        let compressed = miniz_oxide::deflate::compress_to_vec(text.as_bytes(), 10);
        fs::write(out.join(database), compressed)?;
    }
    Ok(())
}

fn extension(file: &Path) -> Option<&str> {
    file.extension()?.to_str()
}

fn uncommented(sql: &str) -> String {
    let mut lines = sql.split_inclusive('\n');
    let first = lines.next().into_iter();
    let rest = lines.filter(|line| !line.trim_start().starts_with("--"));
    first.chain(rest).collect()
}
