# The build refuses a USES that is not in the table and a library of ours in LINKS, and does not find a header of a
# folder outside USES.

cmake_minimum_required(VERSION 3.25)

# Runs a command and stops unless it ends as `wanted` ("passes", "fails") and says `reason`.
function(expect wanted reason)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE said ERROR_VARIABLE said)
  if((wanted STREQUAL "passes" AND NOT result EQUAL 0) OR (wanted STREQUAL "fails" AND result EQUAL 0))
    message(FATAL_ERROR "should be one that ${wanted}: ${ARGN}\n${said}")
  endif()
  if(NOT said MATCHES "${reason}")
    message(FATAL_ERROR "does not say \"${reason}\": ${ARGN}\n${said}")
  endif()
endfunction()

file(REMOVE_RECURSE ${scratch}/project)
set(configure ${CMAKE_COMMAND} -S ${CMAKE_CURRENT_LIST_DIR}/project -G Ninja -D root=${root})
set(build ${CMAKE_COMMAND} --build ${scratch}/project)

expect(passes "" ${configure} -B ${scratch}/project/allowed -D edge=allowed)
expect(passes "" ${build}/allowed)
expect(fails "codec/ may not use storage/" ${configure} -B ${scratch}/project/used -D edge=used)
expect(fails "belong to USES" ${configure} -B ${scratch}/project/linked -D edge=linked)
expect(passes "" ${configure} -B ${scratch}/project/included -D edge=included)
expect(fails "storage/storage.h: No such file or directory" ${build}/included)
