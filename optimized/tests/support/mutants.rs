//! The PTX of the wrong kernels of `kernels/mutants.toml`: one archive, made by `nvrtc.py`.

use std::collections::BTreeMap;
use std::io::Read;

use lzma_rust2::XzReader;

/// The PTX of each mutant, by its name.
pub fn all() -> BTreeMap<String, String> {
    let mut archive = tar::Archive::new(XzReader::new(&include_bytes!("../../kernels/mutants.tar.xz")[..], false));
    let entries = archive.entries().expect("mutants.tar.xz");
    let text = |entry: std::io::Result<tar::Entry<_>>| {
        let (mut entry, mut text) = (entry?, String::new());
        entry.read_to_string(&mut text)?;
        let name = entry.path()?.with_extension("").display().to_string();
        Ok::<_, std::io::Error>((name, text))
    };
    entries.map(text).collect::<Result<_, _>>().expect("mutants.tar.xz")
}
