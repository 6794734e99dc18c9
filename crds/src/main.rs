//! Writes the CRD to `networkloggings.yaml`. Does IO.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/networkloggings.yaml");
    std::fs::write(path, durward_crds::yaml()?)?;
    println!("wrote {path}");
    Ok(())
}
