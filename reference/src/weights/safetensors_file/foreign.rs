//! What a file is that is no safetensors file. Its first bytes would be taken for the length of a header.

/// What files of other formats begin with, and what a message calls them.
const FORMATS: &[(&[u8], &str)] = &[
    (
        b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19",
        "a PyTorch file of the old format, from before 1.6 (torch.load it and torch.save it anew)",
    ),
    (b"\x93NUMPY", "a NumPy array (.npy)"),
    (b"PK\x03\x04", "a zip archive, as .pt and .npz files are"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"GGUF", "a GGUF file"),
    (b"ARROW1", "an Arrow file"),
    (b"PAR1", "a Parquet file"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ\0", "an xz file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"version https://git-lfs", "a Git LFS pointer: the file itself was not fetched (git lfs pull)"),
    (b"<!DOCTYPE", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"{\"", "a JSON text"),
    (b"{\n", "a JSON text"),
    (b"\x80\x02", "a Python pickle"),
    (b"\x80\x03", "a Python pickle"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x80\x05", "a Python pickle"),
];

/// What the file that begins with `bytes` is, if they tell that it is of another format than safetensors, where the length of
/// a header comes first, and then its brace (or spaces).
pub fn foreign(bytes: &[u8]) -> Option<&'static str> {
    if bytes.get(4..8) == Some(&[0; 4]) && matches!(bytes.get(8), Some(b'{' | b' ' | b'\t' | b'\r' | b'\n')) {
        return None;
    }
    if bytes.get(257..262) == Some(b"ustar") {
        return Some("a tar archive");
    }
    FORMATS.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|(_, format)| *format)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_known_by_their_first_bytes_and_safetensors_is_none_of_them() {
        assert_eq!(foreign(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."), Some(FORMATS[0].1));
        assert_eq!(foreign(b"\x80\x02}q\x00."), Some("a Python pickle"));
        assert_eq!(foreign(&[vec![b'x'; 257], b"ustar".to_vec()].concat()), Some("a tar archive"));
        assert_eq!(foreign(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"), Some("a gzip file"));
        assert_eq!(foreign(b"\x1f\x8b\x08\x00\x00\x00\x00\x00{}"), None);
        assert_eq!(foreign(b"anything"), None);
        assert_eq!(foreign(b""), None);
    }
}
