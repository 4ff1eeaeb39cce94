"""The methods, one file each: which networks a method has, and what each of them learns."""
