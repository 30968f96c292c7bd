use dsv2_foreign::Place;

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

fn set(content: &str) -> [(&'static str, String); 2] {
    ["a", "b"].map(|name| (name, content.to_owned()))
}

fn contents(dir: &Path) -> Vec<String> {
    ["a", "b"].map(|name| fs::read_to_string(dir.join(name)).unwrap()).into()
}

#[test]
fn a_set_of_files_takes_the_place_of_an_earlier_one_wherever_it_lies() {
    let room = tempfile::tempdir().unwrap();
    // New with the folders above it, empty, an earlier set, a set among other things, a link
    let places = ["x/y/new", "empty", "earlier", "among", "link"].map(|name| room.path().join(name));
    for place in &places[1..4] {
        fs::create_dir(place).unwrap();
    }
    replace_files(&places[2], &set("old")).unwrap();
    fs::write(places[3].join("other"), "other").unwrap();
    std::os::unix::fs::symlink("earlier", &places[4]).unwrap();
    for (place, others) in places.iter().zip([&[][..], &[], &[], &["other"], &[]]) {
        for content in ["one", "two"] {
            check_folder(place).unwrap();
            replace_files(place, &set(content)).unwrap();
            assert_eq!(contents(place), [content; 2]);
            assert_eq!(names(place), [&["a", "b"], others].concat());
        }
    }
    assert!(fs::symlink_metadata(&places[4]).unwrap().is_symlink());
    assert_eq!(names(room.path()), ["among", "earlier", "empty", "link", "x"]);
}

/// A name that is a folder cannot be replaced by a file; nothing of the set may be there then, or all of the earlier one.
#[test]
fn a_set_that_cannot_be_written_leaves_the_earlier_one() {
    let room = tempfile::tempdir().unwrap();
    let [below_a_file, new] = ["file/report", "x/y/new"].map(|name| room.path().join(name));
    fs::write(room.path().join("file"), "").unwrap();
    assert!(check_folder(&below_a_file).is_err());
    assert!(replace_files(&below_a_file, &set("one")).is_err());
    let unwritable = [("a", String::new()), ("no/such", String::new())];
    let refused = replace_files(&new, &unwritable).unwrap_err().to_string();
    assert!(refused.contains("x/y/new/no/such: cannot write"), "{refused}");
    assert_eq!(names(room.path()), ["file"]);

    replace_files(&new, &set("one")).unwrap();
    assert!(replace_files(&new, &unwritable).is_err());
    assert_eq!((names(&new), contents(&new)), (vec!["a".to_owned(), "b".to_owned()], vec!["one".to_owned(); 2]));
}

#[test]
fn what_can_never_be_a_folder_is_refused_before_the_work() {
    let room = tempfile::tempdir().unwrap();
    fs::write(room.path().join("file"), "").unwrap();
    for (name, why) in [
        ("file".to_owned(), "expected a folder to write to, found something else"),
        ("file/below".to_owned(), "cannot write: "),
        ("x".repeat(300), "cannot write: "),
        ("x/".repeat(3) + &"y".repeat(300), "cannot write: "),
    ] {
        let dir = room.path().join(name);
        let refused = check_folder(&dir).unwrap_err().to_string();
        assert!(refused.starts_with(&format!("{}: {why}", Place(&dir))), "{refused}");
    }
    assert_eq!(names(room.path()), ["file"]);
}
