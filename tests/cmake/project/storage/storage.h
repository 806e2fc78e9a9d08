#pragma once
int Storage();
