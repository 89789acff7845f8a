//! Calls a compiled layer from Rust through its C interface; no crate is needed.
use std::ffi::CStr;
use std::os::raw::{c_char, c_void};

/// `up1_args` of up1.h, field by field.
#[repr(C)]
struct Args {
    size: usize,
    input: *const f32,
    output: *mut f32,
    weights: *const c_void,
    workspace: *mut c_void,
    workspace_size: usize,
    threads: i32,
    shape: i32,
    batch: i64,
    parallel_for: Option<extern "C" fn(*mut c_void, i32, extern "C" fn(*mut c_void, i32), *mut c_void)>,
    context: *mut c_void,
}

extern "C" {
    fn up1_run(args: *const Args) -> i32;
    fn up1_workspace_size(shape: i32, threads: i32) -> usize;
    fn up1_input_shape(shape: i32) -> *const [i64; 5];
    fn up1_output_shape(shape: i32) -> *const [i64; 5];
    fn up1_error_text(code: i32) -> *const c_char;
}

/// The layer on its first input shape.
struct Layer {
    workspace: Vec<u8>,
    inputs: usize,
    outputs: usize,
}

impl Layer {
    fn new() -> Layer {
        // The shapes are constants of the library.
        let count = |shape: *const [i64; 5]| unsafe { (*shape).iter().map(|&n| n as usize).product() };
        unsafe {
            Layer {
                workspace: vec![0; up1_workspace_size(0, 0)],
                inputs: count(up1_input_shape(0)),
                outputs: count(up1_output_shape(0)),
            }
        }
    }

    fn run(&mut self, x: &[f32], y: &mut [f32]) -> Result<(), String> {
        assert!(x.len() == self.inputs && y.len() == self.outputs);
        let args = Args {
            size: std::mem::size_of::<Args>(),
            input: x.as_ptr(),
            output: y.as_mut_ptr(),
            weights: std::ptr::null(),
            workspace: self.workspace.as_mut_ptr().cast(),
            workspace_size: self.workspace.len(),
            threads: 0,
            shape: 0,
            batch: 0,
            parallel_for: None,
            context: std::ptr::null_mut(),
        };
        match unsafe { up1_run(&args) } {
            0 => Ok(()),
            code => Err(unsafe { CStr::from_ptr(up1_error_text(code)) }.to_string_lossy().into_owned()),
        }
    }
}

fn main() -> Result<(), String> {
    let mut layer = Layer::new();
    let x: Vec<f32> = (0..layer.inputs).map(|i| (i % 101) as f32 / 100.0).collect();
    let mut y = vec![0.0; layer.outputs];
    layer.run(&x, &mut y)?;
    let least = y.iter().copied().fold(f32::INFINITY, f32::min);
    let most = y.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    println!("{} values from {} to {}", y.len(), least, most);
    Ok(())
}
