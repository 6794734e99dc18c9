//! The loaded programs, a packet at a time.
mod lab;

#[test]
fn loads() {
    lab::run(|lab| {
        let path = lab.open();
        println!("{:?}", path.dump().map(|d| d.blocks));
        path.grace_period().unwrap();
        println!("{:?}", path.endpoints());
        println!("{:?}", path.close_denials(false));
        println!("{:?}", path.take_suppressed());
    });
}
