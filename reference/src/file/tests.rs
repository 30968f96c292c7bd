use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use super::*;

/// What is no regular file, each with what a message calls it.
fn others(room: &Path) -> Vec<(PathBuf, &'static str)> {
    let path = |name: &str| room.join(name);
    rustix::fs::mknodat(rustix::fs::CWD, path("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    drop(UnixListener::bind(path("socket")).unwrap());
    symlink("/dev/zero", path("link")).unwrap();
    symlink("pipe", path("to-pipe")).unwrap();
    vec![
        (path("pipe"), "a pipe"),
        (path("to-pipe"), "a pipe"),
        (path("socket"), "a socket"),
        (room.to_owned(), "a folder"),
        (PathBuf::from("/dev/zero"), "a device"),
        (path("link"), "a device"),
    ]
}

#[test]
fn nothing_but_a_regular_file_is_read_and_nothing_is_waited_for() {
    let room = tempfile::tempdir().unwrap();
    for (path, what) in others(room.path()) {
        let expected = format!("{}: expected a file, found {what}", path.display());
        assert_eq!(read(&path, 10).unwrap_err().to_string(), expected);
        assert_eq!(map(&path, "a file of tensors").err().unwrap().to_string(), expected);
        assert_eq!(copy(&path, &room.path().join("copy"), &path).unwrap_err().to_string(), expected);
    }
}

#[test]
fn a_file_that_is_too_long_is_not_read() {
    let room = tempfile::tempdir().unwrap();
    let path = room.path().join("config.json");
    File::create(&path).unwrap().set_len(1 << 25).unwrap();
    assert_eq!(read(&path, 1 << 25).unwrap().len(), 1 << 25);
    let refused = read(&path, (1 << 25) - 1).unwrap_err().to_string();
    assert!(refused.ends_with("config.json: expected at most 33554431 bytes, found more"), "{refused}");
}

/// Files of /proc say that they are empty.
#[test]
fn what_a_file_says_of_its_length_is_not_believed() {
    let room = tempfile::tempdir().unwrap();
    let path = room.path().join("config.json");
    symlink("/proc/self/environ", &path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    assert!(!read(&path, 1 << 20).unwrap().is_empty());
    let refused = read(&path, 3).unwrap_err().to_string();
    assert!(refused.ends_with("config.json: expected at most 3 bytes, found more"), "{refused}");
}
