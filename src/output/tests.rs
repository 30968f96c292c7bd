use super::*;

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_file_appears_whole() {
    let room = tempfile::tempdir().unwrap();
    let path = room.path().join("a");
    write_file(&path, b"one").unwrap();
    write_file(&path, b"two").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"two");
    assert_eq!(names(room.path()), ["a"]);
}

#[test]
fn a_path_that_cannot_be_written_leaves_nothing() {
    let room = tempfile::tempdir().unwrap();
    let refused = write_file(&room.path().join("nowhere/a"), b"x").unwrap_err().to_string();
    assert!(refused.contains("nowhere/a: cannot write: "), "{refused}");
    fs::create_dir(room.path().join("taken")).unwrap();
    let refused = write_file(&room.path().join("taken"), b"x").unwrap_err().to_string();
    assert!(refused.ends_with("taken: expected a file to write, found a folder"), "{refused}");
    assert_eq!(names(room.path()), ["taken"]);
}

#[test]
fn a_folder_appears_filled_or_not_at_all() {
    let room = tempfile::tempdir().unwrap();
    let path = room.path().join("folder");
    let failing = write_folder(&path, |new| {
        fs::write(new.join("half"), b"x").unwrap();
        Err(Error::file(new.join("half"), "y", "z"))
    });
    assert_eq!(failing.unwrap_err().to_string(), format!("{}: expected y, found z", path.join("half").display()));
    assert_eq!(names(room.path()), Vec::<String>::new());

    fs::create_dir(&path).unwrap();
    write_folder(&path, |new| write_file(&new.join("inside"), b"x")).unwrap();
    assert_eq!(names(&path), ["inside"]);
    let refused = write_folder(&path, |_| unreachable!("it is not empty")).unwrap_err().to_string();
    assert!(refused.ends_with("expected no folder, or an empty one, found a folder with something in it"), "{refused}");
    assert_eq!(names(room.path()), ["folder"]);
}
